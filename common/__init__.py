"""What every part of the program uses.

Imported before TensorFlow, which reads the settings below when it is imported.

- By default TensorFlow 2.x computes with oneDNN only on processors with AVX512_VNNI. Where there is AVX2 alone, oneDNN
  makes matrix products twice as fast, too.
- TensorFlow 2.x imports Keras 3, which nothing here uses and which takes a quarter of the import's time, unless it is
  told to use Keras 2 instead, which is rarely installed.
"""
import os
import platform

if platform.machine().lower() in ("x86_64", "amd64"):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
