"""Models in use outside of training: export, ONNX, HTTP server, browser demo."""
