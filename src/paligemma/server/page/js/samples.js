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
    "file": "turtle-and-lemon.jpg",
    "about": "a turtle and a lemon on a green background",
    "phrases": "turtle, lemon",
    "question": "where is the turtle?",
    "seed": 12,
    "index": 4
  },
  {
    "file": "drum.jpg",
    "about": "three drums on a pink background",
    "phrases": "drum",
    "question": "how many drums are there?",
    "seed": 12,
    "index": 10
  },
  {
    "file": "lion-and-snake.jpg",
    "about": "three lions and a snake on a black background",
    "phrases": "lion, snake",
    "question": "where is the snake?",
    "seed": 12,
    "index": 18
  },
  {
    "file": "cherry-and-egg.jpg",
    "about": "two eggs and a cherry on a brown background",
    "phrases": "cherry, egg",
    "question": "how many eggs are there?",
    "seed": 12,
    "index": 24
  },
  {
    "file": "tree.jpg",
    "about": "three trees on a red background with the word \"BRUSH\"",
    "phrases": "tree",
    "question": "what is written?",
    "seed": 12,
    "index": 29
  },
  {
    "file": "clock.jpg",
    "about": "two clocks on a black background",
    "phrases": "clock",
    "question": "how many clocks are there?",
    "seed": 12,
    "index": 32
  }
];
