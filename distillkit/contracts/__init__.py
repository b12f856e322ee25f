"""The interfaces between the engine and the methods: what a plugin author reads."""
