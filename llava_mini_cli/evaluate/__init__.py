"""lmms-eval's questions through the engine. `manifest` and `plugin` are what lmms-eval finds; they alone import it."""
