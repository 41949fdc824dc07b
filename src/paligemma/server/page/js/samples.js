// Made by `python -m mini.samples`.
export const SAMPLES = [
  {
    "file": "turtle-and-lemon.jpg",
    "about": "a turtle and a lemon on a green background",
    "phrases": "turtle, lemon",
    "question": "how many turtles are there?",
    "seed": 12,
    "index": 4
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
    "file": "bear.jpg",
    "about": "two bears on an orange background with the word \"SEVEN\"",
    "phrases": "bear",
    "question": "what is written?",
    "seed": 12,
    "index": 72
  },
  {
    "file": "apple-and-cloud.jpg",
    "about": "an apple and a cloud on a photo",
    "phrases": "apple, cloud",
    "question": "how many apples are there?",
    "seed": 12,
    "index": 98
  },
  {
    "file": "monkey-and-strawberry.jpg",
    "about": "two strawberries and a monkey on a photo with the word \"ZOLU\"",
    "phrases": "monkey, strawberry",
    "question": "what is written?",
    "seed": 12,
    "index": 111
  },
  {
    "file": "snowman.jpg",
    "about": "two snowmen on a green background with the word \"MENU\"",
    "phrases": "snowman",
    "question": "how many snowmen are there?",
    "seed": 12,
    "index": 112
  }
];
