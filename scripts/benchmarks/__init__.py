"""The benchmarks: what a lease costs beside a bare lock. Nothing here is a test: no time passes or fails."""
