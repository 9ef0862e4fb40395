"""TensorRT: targets, engines that are built here, bundles that a device builds for itself, plans.

Nothing here imports TensorRT, onnx or torch until it is used.
"""
