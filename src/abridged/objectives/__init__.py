"""What a student is trained for: one settings class and one term (an `nn.Module`) for each objective.

The classes are named, not imported, so that recipes can be listed and checked without loading torch.
"""

OBJECTIVES: dict[str, str] = {
    "logits": "abridged.objectives.settings:Logits",
    "labels": "abridged.objectives.settings:Labels",
    "contrastive": "abridged.objectives.settings:Contrastive",
    "hidden": "abridged.objectives.settings:Hidden",
    "attention": "abridged.objectives.settings:Attention",
    "feed_forward": "abridged.objectives.settings:FeedForward",
    "video_text_contrast": "abridged.objectives.video_settings:VideoTextContrast",
    "video_text_matching": "abridged.objectives.video_settings:VideoTextMatching",
    "frame_contrast": "abridged.objectives.video_settings:FrameContrast",
    "event_order": "abridged.objectives.video_settings:EventOrder",
    "embeddings": "abridged.objectives.settings:EmbeddingDistillation",
}
