"""What the models on top of Vicuna share: its chat template and the CLIP vision tower."""

from transformers import CLIPVisionConfig

PATCH = 14
# As the hub's: media, then text with a space behind it, then the name of who answers.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'][0]['text'] }}"
    "{% else %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def clip_vision_config(*, image_size: int, vision_size: int, vision_layers: int) -> CLIPVisionConfig:
    """Return the configuration of a small CLIP vision tower of patches of 14 pixels."""
    return CLIPVisionConfig(
        hidden_size=vision_size,
        intermediate_size=2 * vision_size,
        num_hidden_layers=vision_layers,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=PATCH,
        projection_dim=vision_size,
    )
