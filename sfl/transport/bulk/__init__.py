"""Files and probes: what travels beside the stream of a device."""
