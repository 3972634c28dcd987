"""Export of models to ONNX, OpenVINO and `torch.export`."""

SUFFIXES = {'onnx': '.onnx', 'torch-export': '.pt2', 'openvino': '.xml'}
"""Suffix of the files of each format."""
