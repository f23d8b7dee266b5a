"""Load tests of video chat against SGLang servers with and without LVSPEC. Sees what a client sees: HTTP."""
