"""One file a verb: parse, call the parts, print."""
