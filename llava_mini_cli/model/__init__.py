"""LLaVA-Mini as transformers classes, registered with the Auto classes under `llava_mini_llama`."""

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.processor import LlavaMiniProcessor

AutoConfig.register("llava_mini_llama", LlavaMiniConfig)
AutoModelForCausalLM.register(LlavaMiniConfig, LlavaMiniForConditionalGeneration)
AutoModelForImageTextToText.register(LlavaMiniConfig, LlavaMiniForConditionalGeneration)
AutoProcessor.register(LlavaMiniConfig, LlavaMiniProcessor)

__all__ = ["LlavaMiniConfig", "LlavaMiniForConditionalGeneration", "LlavaMiniProcessor"]
