"""Builders of the demo model repository: weights found in packages become models that Headrace serves.

``demo`` is the entry (``pull``), ``recipes`` the one table name → builder, ``packages`` the pinned sources.
A builder runs in a child process (``child``), so the caller never imports torch or ONNX.
"""
