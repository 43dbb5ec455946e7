"""Whether a candidate may be promoted: judgement, evidence and the record of decisions. Pure."""

__all__ = ["checks", "comparison", "decide", "evidence", "golden", "history"]
