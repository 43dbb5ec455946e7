"""Whether a candidate may be promoted: judgement, evidence and the record of decisions. Pure."""
