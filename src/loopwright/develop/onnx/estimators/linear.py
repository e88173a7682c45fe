"""Linear models of scikit-learn by public name; models that the installed version lacks are left out."""

from typing import Any

from sklearn import discriminant_analysis, linear_model, svm


def _of(module: Any, names: str) -> list[type]:
    return [getattr(module, name) for name in names.split() if hasattr(module, name)]


LINEAR_CLASSIFIERS = (
    *_of(linear_model, "LogisticRegression LogisticRegressionCV Perceptron PassiveAggressiveClassifier"),
    *_of(linear_model, "RidgeClassifier RidgeClassifierCV SGDClassifier"),
    svm.LinearSVC,
    discriminant_analysis.LinearDiscriminantAnalysis,
)
"""Their `decision_function` is linear."""

LINEAR_REGRESSORS = (
    *_of(linear_model, "LinearRegression Ridge RidgeCV Lasso LassoCV ElasticNet ElasticNetCV BayesianRidge ARDRegression"),
    *_of(linear_model, "Lars LarsCV LassoLars LassoLarsCV LassoLarsIC OrthogonalMatchingPursuit OrthogonalMatchingPursuitCV"),
    *_of(linear_model, "MultiTaskElasticNet MultiTaskElasticNetCV MultiTaskLasso MultiTaskLassoCV"),
    *_of(linear_model, "HuberRegressor QuantileRegressor TheilSenRegressor SGDRegressor"),
    svm.LinearSVR,
)
"""Their `predict` is linear."""

GENERALISED = (linear_model.TweedieRegressor, linear_model.PoissonRegressor, linear_model.GammaRegressor)
"""Their `predict` is linear, or the exponential of a linear function (`logarithmic`)."""


def logarithmic(part: Any) -> bool:
    """Whether the link of a generalised linear model is the logarithm, as it always is for Poisson's and gamma."""
    link = getattr(part, "link", "log")
    return link == "log" or (link == "auto" and part.power > 0)
