"""Metrics of a model: distances between sets of pictures, and metrics of its 3D. One file per
metric; docs/metrics.md explains them.

The arithmetic works on feature matrices and pictures; feature networks are apart (`detectors`,
`lpips`, `onnx_models`). Nothing here knows how a model is trained: it is given a sampling function
(`sampling`) and real pictures (`reals`).
"""
