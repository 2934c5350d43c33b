"""The sweep's spec: a YAML file, typed; errors with file, line and column."""

from saebench.spec.grammar import Arm, Range, Scalar, SweepSpec, Value, choices, options
from saebench.spec.load import load_spec, parse_spec

__all__ = ["Arm", "Range", "Scalar", "SweepSpec", "Value", "choices", "load_spec", "options", "parse_spec"]
