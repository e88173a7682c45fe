"""Transformers: scalers, imputers, encoders, bins, powers, components."""

from typing import Any

import ndonnx as ndx
import numpy as np
from sklearn import decomposition, discriminant_analysis, feature_extraction, impute, preprocessing

from loopwright.base.arrays import Array
from loopwright.base.internals import internal
from loopwright.develop.onnx.estimators.arithmetic import (
    column,
    columns,
    constant,
    interpolated,
    rows,
    same,
    side_by_side,
    times,
    wide,
)
from loopwright.develop.onnx.estimators.dispatch import transform


def scaling(part: Any) -> tuple[Array | None, Array | None]:
    """The divisor of a scaler, and its offset."""
    if isinstance(part, preprocessing.StandardScaler):
        return (part.scale_ if part.with_std else None), (part.mean_ if part.with_mean else None)
    if isinstance(part, preprocessing.RobustScaler):
        return (part.scale_ if part.with_scaling else None), (part.center_ if part.with_centering else None)
    return part.scale_, None


@transform.register(preprocessing.StandardScaler)
@transform.register(preprocessing.RobustScaler)
@transform.register(preprocessing.MaxAbsScaler)
def _(part: Any, x: Any) -> Any:
    scale, middle = scaling(part)
    x = wide(x) if middle is None else wide(x) - constant(middle)
    x = x if scale is None else x / constant(scale)
    return ndx.clip(x, -1.0, 1.0) if getattr(part, "clip", False) else x


@transform.register(preprocessing.MinMaxScaler)
def _(part: preprocessing.MinMaxScaler, x: Any) -> Any:
    x = wide(x) * constant(part.scale_) + constant(part.min_)
    return ndx.clip(x, float(part.feature_range[0]), float(part.feature_range[1])) if part.clip else x


@transform.register(preprocessing.FunctionTransformer)
def _(part: preprocessing.FunctionTransformer, x: Any) -> Any:
    if part.func is not None:
        raise ValueError("a FunctionTransformer is Python code: write it in `features` instead")
    return x


def _is_missing(x: Any, missing: Any) -> Any:
    return ndx.isnan(x) if missing is None or np.isnan(missing) else x == float(missing)


@transform.register(impute.SimpleImputer)
def _(part: impute.SimpleImputer, x: Any) -> Any:
    missing = _is_missing(x, part.missing_values)
    values = np.asarray(part.statistics_, dtype=np.float64)
    kept = np.arange(len(values)) if part.keep_empty_features else np.flatnonzero(~np.isnan(values))
    filled = ndx.where(missing, constant(np.nan_to_num(values, nan=0.0)), wide(x))
    blocks = [filled if len(kept) == len(values) else columns(filled, kept)]
    if part.indicator_ is not None and len(part.indicator_.features_):
        blocks.append(columns(ndx.astype(missing, ndx.float64), part.indicator_.features_))
    return side_by_side(blocks)


@transform.register(impute.KNNImputer)
def _(_part: impute.KNNImputer, _x: Any) -> Any:
    raise ValueError("KNNImputer cannot be converted to ONNX exactly: use SimpleImputer")


@transform.register(impute.MissingIndicator)
def _(part: impute.MissingIndicator, x: Any) -> Any:
    return columns(ndx.astype(_is_missing(x, part.missing_values), ndx.float64), part.features_)


@transform.register(decomposition.PCA)
@transform.register(decomposition.IncrementalPCA)
def _(part: Any, x: Any) -> Any:
    x = times(x, part.components_.T) - constant(part.mean_ @ part.components_.T)
    spread = np.sqrt(part.explained_variance_)
    return x / constant(np.maximum(spread, np.finfo(spread.dtype).eps)) if part.whiten else x


@transform.register(decomposition.TruncatedSVD)
def _(part: decomposition.TruncatedSVD, x: Any) -> Any:
    return times(x, part.components_.T)


@transform.register(discriminant_analysis.LinearDiscriminantAnalysis)
def _(part: discriminant_analysis.LinearDiscriminantAnalysis, x: Any) -> Any:
    x = wide(x) - constant(part.xbar_) if part.solver == "svd" else x
    most = min(len(part.classes_) - 1, part.n_features_in_) if part.n_components is None else part.n_components
    return times(x, part.scalings_[:, :most])


@transform.register(preprocessing.PolynomialFeatures)
def _(part: preprocessing.PolynomialFeatures, x: Any) -> Any:
    width = part.n_features_in_
    factors = [np.repeat(np.arange(width), powers) for powers in part.powers_]
    most = max(1, *(len(f) for f in factors))
    padded = np.array([[*f, *[width] * (most - len(f))] for f in factors])  # the column behind the last is 1
    x = side_by_side([x, same(wide(x), [1.0])])
    product = columns(x, padded[:, 0])
    for which in padded.T[1:]:
        product = product * columns(x, which)
    return product


def _scaled_rows(x: Any, norm: str, smallest: float) -> Any:
    """Each row divided by its norm; a row whose norm is below `smallest` is unchanged."""
    if norm == "l2":
        size = ndx.sqrt(ndx.sum(x * x, axis=1, keepdims=True))
    else:
        size = (ndx.sum if norm == "l1" else ndx.max)(ndx.abs(x), axis=1, keepdims=True)
    return x / ndx.where(size < smallest, 1.0, size)


@transform.register(preprocessing.Normalizer)
def _(part: preprocessing.Normalizer, x: Any) -> Any:
    return _scaled_rows(wide(x), part.norm, 10 * np.finfo(np.float64).eps)


@transform.register(feature_extraction.text.TfidfTransformer)
def _(part: feature_extraction.text.TfidfTransformer, x: Any) -> Any:
    x = wide(x)
    if part.sublinear_tf:
        x = ndx.where(x == 0, 0.0, ndx.log(ndx.where(x == 0, 1.0, x)) + 1.0)
    x = x * constant(part.idf_)[None, :] if part.use_idf else x
    return x if part.norm is None else _scaled_rows(x, part.norm, np.finfo(np.float64).smallest_subnormal)


@transform.register(preprocessing.Binarizer)
def _(part: preprocessing.Binarizer, x: Any) -> Any:
    return ndx.astype(wide(x) > float(part.threshold), ndx.float64)


@transform.register(preprocessing.KBinsDiscretizer)
def _(part: preprocessing.KBinsDiscretizer, x: Any) -> Any:
    within = [np.asarray(edges)[1:-1] for edges in part.bin_edges_]
    padded = np.full((len(within), max(1, *(len(w) for w in within))), np.inf)  # no weight may be NaN, see graph_check
    for row, edges in zip(padded, within, strict=True):
        row[: len(edges)] = edges
    above = ndx.expand_dims(ndx.clip(wide(x), max=np.finfo(np.float64).max), axis=2) >= ndx.asarray(padded[None])
    bins = ndx.astype(ndx.sum(ndx.astype(above, ndx.int64), axis=2), ndx.float64)
    if "onehot" not in part.encode:
        return bins
    counts = [len(w) + 1 for w in within]
    words = np.concatenate([np.arange(count) for count in counts])
    return ndx.astype(columns(bins, np.repeat(np.arange(len(counts)), counts)) == constant(words), ndx.float64)


def _categories(part: Any) -> list[Array]:
    if part.min_frequency is not None or part.max_categories is not None:
        raise ValueError(f"{type(part).__name__} with min_frequency or max_categories cannot be converted to ONNX: remove them")
    return [np.asarray(words, dtype=np.float64) for words in part.categories_]


def _equals(x: Any, words: Array) -> Any:
    """Which of the words each number is, bool [N, W]; NaN is a word too."""
    same = x == constant(words)[None, :]
    return same | (ndx.isnan(x) & ndx.asarray(np.isnan(words))[None, :])


@transform.register(preprocessing.OneHotEncoder)
def _(part: preprocessing.OneHotEncoder, x: Any) -> Any:
    drop, words = part.drop_idx_, _categories(part)
    kept = [[j for j in range(len(w)) if drop is None or drop[i] != j] for i, w in enumerate(words)]
    which = np.repeat(np.arange(len(words)), [len(k) for k in kept])
    wanted = np.concatenate([w[k] for w, k in zip(words, kept, strict=True)])
    return ndx.astype(_equals(columns(wide(x), which), wanted), ndx.float64)


@transform.register(preprocessing.OrdinalEncoder)
def _(part: preprocessing.OrdinalEncoder, x: Any) -> Any:
    x = wide(x)
    blocks = []
    for i, words in enumerate(_categories(part)):
        codes = np.where(np.isnan(words), float(part.encoded_missing_value), np.arange(len(words)))
        hit = _equals(column(x, i), words)
        found = ndx.sum(ndx.where(hit, constant(codes)[None, :], 0.0), axis=1, keepdims=True)
        if part.unknown_value is not None:
            found = ndx.where(ndx.any(hit, axis=1, keepdims=True), found, float(part.unknown_value))
        blocks.append(found)
    return side_by_side(blocks)


@transform.register(preprocessing.PowerTransformer)
def _(part: preprocessing.PowerTransformer, x: Any) -> Any:
    x, powers = wide(x), np.asarray(part.lambdas_)
    x = _to_power(ndx.log(x), powers) if part.method == "box-cox" else _yeo_johnson(x, powers)
    return transform(internal(part, "_scaler"), x) if part.standardize else x


def _yeo_johnson(x: Any, powers: Array) -> Any:
    """Yeo & Johnson 2000, A new family of power transformations."""
    up, down = ndx.log1p(ndx.where(x >= 0, x, 0.0)), ndx.log1p(ndx.where(x >= 0, 0.0, -x))
    return ndx.where(ndx.isnan(x), x, ndx.where(x >= 0, _to_power(up, powers), -_to_power(down, 2 - powers)))


def _to_power(log: Any, powers: Array) -> Any:
    """(exp(power * log) - 1) / power by column, which is log where the power is 0."""
    none = np.abs(powers) < np.spacing(1.0)
    safe = np.where(none, 1.0, powers)
    return ndx.where(ndx.asarray(none[None, :]), log, ndx.expm1(log * constant(safe)) / constant(safe))


@transform.register(preprocessing.QuantileTransformer)
def _(part: preprocessing.QuantileTransformer, x: Any) -> Any:
    if part.output_distribution != "uniform":
        raise ValueError(
            "QuantileTransformer to a normal distribution cannot be converted to ONNX: use output_distribution='uniform'"
        )
    x = wide(x)
    return side_by_side([_quantiles(column(x, i), part.quantiles_[:, i], part.references_) for i in range(part.n_features_in_)])


def _quantiles(x: Any, quantiles: Array, references: Array) -> Any:
    low, high = float(quantiles[0]), float(quantiles[-1])
    inside = ndx.clip(x, low, high)
    flat = ndx.reshape(inside, (-1,))
    up = interpolated(flat, quantiles, references)
    down = -interpolated(-flat, -quantiles[::-1], -references[::-1])
    middle = rows((up + down) * 0.5)
    found = ndx.where(x <= low, 0.0, ndx.where(x >= high, 1.0, middle))
    return ndx.where(ndx.isnan(x), x, found)
