"""Which parameters are trained, frozen, quantised, and which travel."""
