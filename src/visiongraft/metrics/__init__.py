"""Metrics that TorchMetrics does not have, as functions of tensors.

Seams of panoramas (``seams``), distances between sets of features (``frechet``), errors where a mask says so (``masked``), recall
curves of camera errors (``recall``), and vision models that turn images into features (``feature_encoders``).
"""
