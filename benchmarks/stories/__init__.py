"""Story benchmarks: stories made through the server by one method or several, and the papers' figures of them.

`run` makes and scores them (`python -m benchmarks.stories`); a metric is a file that fulfils `metric.Metric`; a method
is a line of `methods.METHODS`. docs/benchmarks.md walks through it.
"""
