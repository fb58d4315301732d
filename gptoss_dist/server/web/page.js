// The page's beginning: what is watched, and the conversation.
import { Chat } from "./chat.js";
import { watch } from "./live.js";

watch();
new Chat();
