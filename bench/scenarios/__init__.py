"""One file per group of scenarios; each lists its own in `SCENARIOS`, and `bench.registry` joins the lists."""
