"""What the options of a model need of this machine, looked at before the model is.

torch is imported only where an option asks something of a device.
"""

from llava_mini_cli.config import ModelOptions
from llava_mini_cli.needs import check_model_packages
from llava_mini_cli.pipelines.footprint import refuse_early


def look_at_needs(options: ModelOptions) -> None:
    """Makes sure that what the options need is there and works.

    Opens no file of a model, but where float32 is all that is asked for, which every processor has: then the model's
    memory is counted at once.

    Raises:
        PackageMissing, UsageError: a package, device, number format, kernel or compiler is not to be had; one line
            says which. UsageError too where the model does not fit the memory.
    """
    check_model_packages(options)
    refuse_early(options)
    asked = (options.dtype, options.quantize, options.compile) != ("auto", None, False)
    on_cards = options.tensor_parallel > 1 or options.gpu_memory is not None
    if not (asked or on_cards) and options.device in ("auto", "cpu"):
        return
    from llava_mini_cli.engine.devices import try_cards, try_device

    try_cards(options, try_device(options.device))  # which take torch alone
    if asked:
        from llava_mini_cli.engine.trials import try_options

        try_options(options)
