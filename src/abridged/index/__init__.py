"""An index of what is in a folder, and search in it by description: a moment in a video, a clip like another one."""
