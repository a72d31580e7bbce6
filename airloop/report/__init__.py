"""One page per run of a loop, and an index of all its runs: self-contained HTML, charts drawn as SVG."""
