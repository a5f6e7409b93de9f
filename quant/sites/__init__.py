"""The sites of a model: where quantizers may stand, found by one traced forward."""
