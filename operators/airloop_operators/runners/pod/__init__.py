"""Steps as pods: what a pod is made of, how its end is read, and the runner that watches it."""
