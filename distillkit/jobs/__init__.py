"""The use cases: distil, train a teacher, evaluate, make reference statistics, plan."""
