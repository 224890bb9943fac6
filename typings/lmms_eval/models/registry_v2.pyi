class ModelManifest:
    def __init__(
        self,
        model_id: str,
        simple_class_path: str | None = None,
        chat_class_path: str | None = None,
        aliases: tuple[str, ...] = (),
    ) -> None: ...
