"""What every part of the program uses.

Imported before TensorFlow, which reads the setting below when it is imported. By default TensorFlow 2.x computes with
oneDNN only on processors with AVX512_VNNI. Where there is AVX2 alone, oneDNN makes matrix products twice as fast, too.
"""
import os
import platform

if platform.machine().lower() in ("x86_64", "amd64"):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
