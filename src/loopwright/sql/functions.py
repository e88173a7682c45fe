"""SQL functions that a declared expression may call: each was reviewed to be a function of one row.

Each depends on its arguments only: not on other rows, the clock, random numbers, the session, the catalogue or a file. Macros are
listed only if everything that they expand to is. Functions new in DuckDB are refused until they are reviewed and added here, so an
expression means the same under every DuckDB. `tests/sql/test_expression.py` compares the list with DuckDB's catalogue.

Excluded although they depend on their arguments only: functions whose result is as large as an argument says (`range`,
`generate_series`, `repeat`, `list_resize`), those that make several rows of one (`unnest`), and DuckDB's internals.
"""

_OPERATORS = """
    != !__postfix !~~ !~~* % & && * ** + - ->> / // < <-> << <= <=> <@ = > >= >> @ @> ^ ^@ | || ~ ~~ ~~* ~~~
    add subtract multiply divide mod xor
"""

_NUMBERS = """
    abs acos acosh asin asinh atan atan2 atanh bin binom bit_count bit_position cbrt ceil ceiling cos cosh cot degrees even exp
    factorial fdiv floor fmod gamma gcd get_bit greatest greatest_common_divisor isfinite isinf isnan lcm least
    least_common_multiple lgamma ln log log10 log2 nextafter pi pow power radians round round_even roundbankers set_bit sign
    signbit sin sinh sqrt tan tanh to_base trunc
"""

_TEXT = """
    array_to_string array_to_string_comma_default ascii bar base64 bit_length char_length character_length chr concat concat_ws
    contains damerau_levenshtein decode editdist3 encode ends_with format format_bytes formatreadabledecimalsize formatreadablesize
    from_base64 from_binary from_hex hamming hash hex ilike_escape instr jaccard jaro_similarity jaro_winkler_similarity lcase left
    left_grapheme len length length_grapheme levenshtein like_escape lower lpad ltrim md5 md5_number md5_number_lower
    md5_number_upper mismatches nfc_normalize not_ilike_escape not_like_escape octet_length ord overlay parse_dirname
    parse_dirpath parse_filename parse_formatted_bytes parse_path position prefix printf regexp_escape regexp_extract
    regexp_extract_all regexp_full_match regexp_matches regexp_replace regexp_split_to_array replace reverse right right_grapheme
    rpad rtrim sha1 sha256 split split_part starts_with str_split str_split_regex string_split string_split_regex string_to_array
    strip_accents strlen strpos substr substring substring_grapheme suffix to_base64 to_binary to_hex translate trim ucase unbin
    unhex unicode upper url_decode url_encode
"""

_TIMES = """
    age century date_add date_diff date_part date_sub date_trunc datediff datepart datesub datetrunc day dayname dayofmonth
    dayofweek dayofyear days_in_month decade epoch epoch_ms epoch_ns epoch_us era hour isodow isoyear julian last_day make_date
    make_time make_timestamp make_timestamp_ms make_timestamp_ns make_timestamptz microsecond millennium millisecond minute month
    monthname nanosecond normalized_interval quarter second strftime strptime time_bucket timezone timezone_hour timezone_minute
    to_centuries to_days to_decades to_hours to_microseconds to_millennia to_milliseconds to_minutes to_months to_quarters
    to_seconds to_timestamp to_weeks to_years try_strptime uuid_extract_timestamp uuid_extract_version week weekday weekofyear year
    yearweek
"""

_LISTS = """
    aggregate apply array_aggr array_aggregate array_append array_apply array_cat array_concat array_contains
    array_cosine_distance array_cosine_similarity array_cross_product array_distance array_distinct array_dot_product
    array_extract array_filter array_grade_up array_has array_has_all array_has_any array_indexof array_inner_product
    array_intersect array_length array_negative_dot_product array_negative_inner_product array_pop_back array_pop_front
    array_position array_prepend array_push_back array_push_front array_reduce array_reverse array_reverse_sort array_select
    array_slice array_sort array_transform array_unique array_value array_where array_zip cardinality element_at filter flatten
    grade_up list_aggr list_aggregate list_any_value list_append list_apply list_approx_count_distinct list_avg list_bit_and
    list_bit_or list_bit_xor list_bool_and list_bool_or list_cat list_concat list_contains list_cosine_distance
    list_cosine_similarity list_count list_distance list_distinct list_dot_product list_element list_entropy list_extract
    list_filter list_first list_grade_up list_has list_has_all list_has_any list_histogram list_indexof list_inner_product
    list_intersect list_kurtosis list_kurtosis_pop list_last list_mad list_max list_median list_min list_mode
    list_negative_dot_product list_negative_inner_product list_pack list_position list_prepend list_product list_reduce
    list_reverse list_reverse_sort list_select list_sem list_skewness list_slice list_sort list_stddev_pop list_stddev_samp
    list_string_agg list_sum list_transform list_unique list_value list_var_pop list_var_samp list_where list_zip map map_concat
    map_contains map_contains_entry map_contains_value map_entries map_extract map_extract_value map_from_entries map_keys
    map_values reduce row struct_concat struct_contains struct_extract struct_extract_at struct_has struct_indexof struct_insert
    struct_keys struct_pack struct_position struct_update struct_values union_extract union_tag union_value
"""

_JSON = """
    array_to_json from_json from_json_strict json json_array json_array_length json_contains json_deep_merge json_exists
    json_extract json_extract_path json_extract_path_text json_extract_string json_insert json_keys json_merge_patch
    json_merge_patch_diff json_normalize json_object json_pretty json_quote json_remove json_replace json_set json_strip_nulls
    json_structure json_transform json_transform_strict json_type json_valid json_value row_to_json to_json
"""

_CHOICES = "assert_true constant_or_null enum_code enum_first enum_last enum_range enum_range_boundary error if nullif pg_typeof typeof"

ROW_FUNCTIONS = frozenset(f"{_OPERATORS} {_NUMBERS} {_TEXT} {_TIMES} {_LISTS} {_JSON} {_CHOICES}".split())
"""Names in lower case."""

AGGREGATE_OF_LIST = frozenset(("aggregate", "array_aggr", "array_aggregate", "list_aggr", "list_aggregate"))
"""Functions of a list whose second argument names the aggregate."""

_AGGREGATES = """
    any_value approx_count_distinct avg bit_and bit_or bit_xor bool_and bool_or count entropy first histogram kurtosis kurtosis_pop
    last mad max mean median min mode product quantile quantile_cont quantile_disc sem skewness stddev stddev_pop stddev_samp
    string_agg sum var_pop var_samp variance
"""

LIST_AGGREGATES = frozenset(_AGGREGATES.split())
"""Aggregates over a list that give the same value for the same list: no samples."""
