"""Whether a candidate may be promoted: judgement, evidence and the record of decisions. Pure."""

__all__ = ["checks", "comparison", "data_checks", "decide", "evidence", "golden", "history"]
