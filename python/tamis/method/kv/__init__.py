"""KV-cache methods as data, found by module name: ``tamis.kv.Cache(config, "kivi4")``."""
