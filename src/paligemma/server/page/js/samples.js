// Made by `python -m mini.samples`.
export const SAMPLES = [
  {
    "file": "cactus.jpg",
    "about": "two cactuses on a red background with the word \"JOLLY\"",
    "phrases": "cactus",
    "question": "how many cactuses are there?",
    "seed": 12,
    "index": 0
  },
  {
    "file": "phone.jpg",
    "about": "two phones on an orange background with the word \"MAJOR\"",
    "phrases": "phone",
    "question": "what is written?",
    "seed": 12,
    "index": 5
  },
  {
    "file": "bear-and-fish.jpg",
    "about": "two fish and a bear on a green background",
    "phrases": "bear, fish",
    "question": "how many fish are there?",
    "seed": 12,
    "index": 12
  },
  {
    "file": "clock.jpg",
    "about": "two clocks on a black background",
    "phrases": "clock",
    "question": "how many clocks are there?",
    "seed": 12,
    "index": 32
  },
  {
    "file": "pizza.jpg",
    "about": "two pizzas on a blue background",
    "phrases": "pizza",
    "question": "how many pizzas are there?",
    "seed": 12,
    "index": 39
  },
  {
    "file": "monkey.jpg",
    "about": "two monkeys on a purple background with the word \"BIG\"",
    "phrases": "monkey",
    "question": "what is written?",
    "seed": 12,
    "index": 80
  },
  {
    "file": "drum.jpg",
    "about": "three drums on a blue background with the word \"WILE\"",
    "phrases": "drum",
    "question": "how many drums are there?",
    "seed": 12,
    "index": 88
  }
];
