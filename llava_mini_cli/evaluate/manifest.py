"""The entry point of the group `lmms_eval.models`: says where the model is, without loading it."""

from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingModuleSource]


def manifest() -> ModelManifest:
    """The manifest of the model `llava_mini`."""
    return ModelManifest("llava_mini", simple_class_path="llava_mini_cli.evaluate.plugin.LlavaMini")
