"""Chat templates in the style of families of models, each with what its like asks of Jinja."""

from __future__ import annotations

LLAMA_31 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}{% set tools = none %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|role|>system\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{{- system + "<|turn_end|>" }}
{%- if tools is not none %}
    {{- "You may call:\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role in ('tool', 'ipython') or 'tool_calls' in message) %}
        {{- '<|role|>' + message.role + '\\n\\n' + (message.content | trim) + '<|turn_end|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception("One tool call at a time!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|role|>assistant\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}<|turn_end|>" }}
    {%- else %}
        {{- "<|role|>ipython\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|turn_end|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|role|>assistant\\n\\n' }}
{%- endif %}
"""

LLAMA_32_DATED = """\
{{ bos_token }}<|role|>system

Cutting off: December. Year has {{ strftime_now("%Y") | length }} digits.
{% if tools %}
{% for tool in tools %}
- {{ tool.function.name }}: {{ tool | tojson(sort_keys=true, separators=(',', ':')) }}
{% endfor %}
{% endif %}
{% for m in messages %}
<|role|>{{ m.role }}
    {% if m.content %}
{{ m.content }}
    {% endif %}
    {%- for c in m.tool_calls or [] %}
[{{ c.function.name }}({% for k, v in c.function.arguments.items() %}{{ k }}={{ v | tojson }}\
{% if not loop.last %}, {% endif %}{% endfor %})]
    {%- endfor %}
<|turn_end|>
{% endfor %}
{% if add_generation_prompt %}<|role|>assistant
{% endif %}
"""

LLAMA_2 = """\
{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}\
{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}\
{% set system_message = false %}{% endif %}{% for message in loop_messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Roles go user/assistant/user/assistant/...') }}{% endif %}\
{% if loop.index0 == 0 and system_message != false %}\
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}\
{% endif %}{% endfor %}"""

QWEN_25 = """\
{%- if tools %}
    {{- '<|role|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You help.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n{\\"name\\": <name>, \\"arguments\\": <object>}<|turn_end|>\\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|role|>system\\n' + messages[0]['content'] + '<|turn_end|>\\n' }}
{%- else %}
    {{- '<|role|>system\\nYou help.<|turn_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or \
(message.role == "assistant" and not message.tool_calls) %}
        {{- '<|role|>' + message.role + '\\n' + message.content + '<|turn_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|role|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|turn_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|role|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|turn_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|role|>assistant\\n' }}
{%- endif %}
"""

QWEN_3 = """\
{%- if tools %}
    {{- '<|role|>system\\n' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- '<|turn_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not \
(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role in ("user", "system") %}
        {{- '<|role|>' + message.role + '\\n' + content + '<|turn_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|role|>assistant\\n' }}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning) %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content.lstrip('\\n') }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
            {{- '<tool_call>\\n{"name": "' + tool_call.function.name + '", "arguments": ' }}
            {%- if tool_call.function.arguments is string %}
                {{- tool_call.function.arguments }}
            {%- else %}
                {{- tool_call.function.arguments | tojson }}
            {%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|turn_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|role|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|turn_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|role|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.tool_calls is defined) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the system message roles alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Ids of tool calls have 9 letters!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + ", " }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles here!") }}
    {%- endif %}
{%- endfor %}
"""

MISTRAL_SMALL = """\
{%- set today = strftime_now("%Y") | int > 2000 %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {%- if message['content'] is string %}
            {{- '[INST]' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST]' }}
            {%- for block in message['content'] %}
                {%- if block['type'] == 'text' %}{{- block['text'] }}{%- continue %}{%- endif %}
                {{- raise_exception('Only text blocks!') }}
            {%- endfor %}
            {{- '[/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'system' %}
        {{- '[SYSTEM_PROMPT]' ~ message['content'] ~ today ~ '[/SYSTEM_PROMPT]' }}
    {%- elif message['role'] == 'assistant' %}
        {%- generation %}
        {{- message['content'] ~ eos_token }}
        {%- endgeneration %}
    {%- else %}
        {{- '[' ~ message | tojson(ensure_ascii=True) ~ ']' }}
    {%- endif %}
{%- endfor %}
"""

GLM_4 = """\
[gMASK]<sop>
{%- if tools -%}
<|role|>system
# Tools
{% for tool in tools %}
{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}
{%- endif -%}
{%- macro visible_text(content) -%}
    {%- if content is string -%}
        {{- content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for item in content -%}
            {%- if item is mapping and item.type == 'text' -%}
                {{- item.text }}
            {%- elif item is string -%}
                {{- item }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{- content }}
    {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last_user_index=-1) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{% set ns.last_user_index = loop.index0 -%}{%- endif %}
{%- endfor %}
{% for m in messages %}
{%- if m.role == 'user' -%}<|role|>user
{{ visible_text(m.content) }}
{{- '/nothink' if (enable_thinking is defined and not enable_thinking and \
not visible_text(m.content).endswith("/nothink")) else '' -}}
{%- elif m.role == 'assistant' -%}
<|role|>assistant
{%- if m.reasoning_content and loop.index0 > ns.last_user_index -%}
{{ '\\n<think>' + m.reasoning_content.strip() + '</think>' }}
{%- else -%}
{{ '\\n<think></think>' }}
{%- endif -%}
{%- if m.content -%}{{ '\\n' + visible_text(m.content).strip() }}{%- endif -%}
{% for tc in m.tool_calls or [] %}
{{ '\\n<tool_call>' + tc.function.name }}
{% set _args = tc.function.arguments %}
{% for k, v in _args.items() %}
<arg_key>{{ k }}</arg_key>
<arg_value>{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>
{% endfor %}
</tool_call>{% endfor %}
{%- elif m.role == 'tool' -%}
{%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
    {{- '<|role|>observation' }}
{%- endif %}
{{- '\\n<tool_response>\\n' + visible_text(m.content) + '\\n</tool_response>' }}
{%- elif m.role == 'system' -%}
<|role|>system
{{ visible_text(m.content) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|role|>assistant{%- endif -%}
"""

DEEPSEEK_V3 = """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}\
{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}\
{%- for message in messages %}{%- if message['role'] == 'system' %}\
{% set ns.system_prompt = ns.system_prompt + message['content'] %}{%- endif %}{%- endfor %}\
{{bos_token}}{{ns.system_prompt}}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<|user|>' + message['content']}}
{%- endif %}
{%- if message['role'] == 'assistant' and message['content'] is none or message['tool_calls'] %}\
{%- set ns.is_tool = false -%}
{%- for tool in message['tool_calls']%}
{%- if not ns.is_first %}{{'<calls><call>' + tool['type'] + '<sep>' + tool['function']['name'] + \
'\\n```json\\n' + tool['function']['arguments']|tojson + '\\n```<end>'}}\
{%- set ns.is_first = true -%}
{%- else %}{{'\\n<call>' + tool['type'] + '<sep>' + tool['function']['name'] + '<end>'}}
{%- endif %}{%- endfor %}{%- endif %}
{%- if message['role'] == 'assistant' and message['content'] is string %}
{%- if ns.is_tool %}{{'<outputs end>' + message['content'] + eos_token}}\
{%- set ns.is_tool = false -%}
{%- else %}{% set content = message['content'] %}{% if '</think>' in content %}\
{% set content = content.split('</think>')[-1] %}{% endif %}{{'<|it|>' + content + eos_token}}
{%- endif %}{%- endif %}
{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}
{%- if ns.is_output_first %}{{'<outputs><output>' + message['content'] + '<end>'}}\
{%- set ns.is_output_first = false %}
{%- else %}{{'\\n<output>' + message['content'] + '<end>'}}{%- endif %}{%- endif %}
{%- endfor -%}{% if ns.is_tool %}{{'<outputs end>'}}{% endif %}\
{% if add_generation_prompt and not ns.is_tool %}{{'<|it|><think>\\n'}}{% endif %}"""

DEEPSEEK_V31 = """\
{% if not thinking is defined %}{% set thinking = false %}{% endif %}
{%- set parts = dict(system='', tools='') -%}
{%- set system = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') \
| join('\\n\\n') -%}
{{ bos_token ~ system }}
{%- if tools is defined and tools is not none -%}
    {%- for tool in tools | sort(attribute='function.name') -%}
### {{ tool['function']['name'] }}
Parameters: {{ tool['function']['parameters'] | tojson(indent=2, sort_keys=true) }}
    {%- endfor -%}
{%- endif -%}
{%- for message in messages if message.role != 'system' -%}
    {%- if loop.length > 50 %}{% break %}{% endif -%}
    {%- if message.role == 'user' -%}<|user|>{{ message.content }}
    {%- elif message.role == 'assistant' -%}
<|it|>{{ '<think>' if thinking else '</think>' }}{% generation %}{{ message.content or '' }}\
{%- for call in message.tool_calls or [] -%}
<call>{{ call.function.name }}<sep>{{ call.function.arguments | tojson(separators=(',', ': ')) }}\
{%- endfor -%}{{ eos_token }}{% endgeneration %}
    {%- else -%}<output>{{ message.content }}</output>
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|it|>{{ '<think>' if thinking else '</think>' }}{% endif -%}
{{ parts.items() | list | length if parts else '' }}{{ documents is none }}{{ tools is none }}"""

COMMAND_WITH_DOCUMENTS = """\
{{ bos_token }}
{%- if documents %}
<|role|>system
{% for document in documents %}
Document: {{ loop.index0 }}
    {% for key, value in document | dictsort %}
{{ key }}: {{ value }}
    {% endfor %}
{% endfor %}
{% endif %}
{% for message in messages %}
<|role|>{{ message.role | upper }}: {{ (message.content or message | tojson) | string | indent(2) }}
{% endfor %}
{% if add_generation_prompt %}<|role|>{{ cls_token }}CHATBOT:{% endif %}
"""

PHI_GENERATION = """\
{% for message in messages %}
{% if message.role == 'assistant' %}
<|assistant|>
{% generation %}
{% set shown = message.thinking | default(message.content, true) %}
{{ shown }}<|end|>
{% endgeneration %}
{% else %}
{{ '<|' ~ message.role ~ '|>\\n' ~ message.content ~ '<|end|>' }}
{% endif %}
{{ shown | default('-') }}
{% endfor %}
{{ '<|assistant|>\\n' if add_generation_prompt else eos_token }}
"""

TEMPLATES = {
    "llama-3.1": LLAMA_31,
    "llama-3.2": LLAMA_32_DATED,
    "llama-2": LLAMA_2,
    "qwen2.5": QWEN_25,
    "qwen3": QWEN_3,
    "mistral": MISTRAL,
    "mistral-small": MISTRAL_SMALL,
    "glm-4": GLM_4,
    "deepseek-v3": DEEPSEEK_V3,
    "deepseek-v3.1": DEEPSEEK_V31,
    "command": COMMAND_WITH_DOCUMENTS,
    "phi": PHI_GENERATION,
}
