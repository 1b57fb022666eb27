"""Default length of the clips that speech models transcribe."""

from typing import Any

WINDOW_SECONDS = 30
"""Length of the clips that Whisper was trained on, silence behind the speech included."""


def with_speech_windows(content: dict[str, Any]) -> dict[str, Any]:
    """Return a job's content with `max_seconds` of inputs that a task with `reads` names, where it is not set.

    Whisper repeats itself where a clip ends without the silence that it was trained with.
    """
    inputs, tasks = content.get("inputs"), content.get("tasks")
    if not isinstance(inputs, dict) or not isinstance(tasks, dict):
        return content
    read = [task.get("reads") for task in tasks.values() if isinstance(task, dict)]
    filled = {
        name: {"max_seconds": WINDOW_SECONDS, **options}
        if name in read and isinstance(options, dict) and options.get("type") == "audio"
        else options
        for name, options in inputs.items()
    }
    return {**content, "inputs": filled}
