"""Which trained system a command loads; light, for the sake of its help."""


def add_model_options(command):
    """Adds the options that ``command_line.load_recognizer`` reads.

    Arguments
    ---------
    command : argparse.ArgumentParser
    """
    command.add_argument(
        "--model",
        required=True,
        metavar="FOLDER",
        help="the folder 'recognizer' of a run of stage 2, what emoq export "
        "has made, or the name of that on the Hugging Face hub",
    )
    command.add_argument(
        "--trust_source",
        action="store_true",
        help="load a model whose YAML names code that EmoQ does not know, for "
        "instance your own",
    )
    command.add_argument(
        "--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one"
    )
