"""Stage 1: the problem, who wants what, what it may cost, the rule to beat, and the ladder that is climbed from it."""
