"""Write and read trained models: our file, the weights folder, ONNX; check foreign files."""
