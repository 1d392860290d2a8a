"""Measurements that the command line offers (`muonlab bench …`) and the benchmarks build on."""
