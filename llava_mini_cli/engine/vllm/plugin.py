"""What vLLM calls in each of its processes, by the entry point `vllm.general_plugins`."""

ARCHITECTURE = "LlavaMiniLanguageModel"


def register() -> None:
    """Tells vLLM of the language model's architecture, which is imported once it is wanted."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, f"llava_mini_cli.engine.vllm.architecture:{ARCHITECTURE}")
