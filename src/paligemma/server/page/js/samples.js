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
    "file": "phone.jpg",
    "about": "two phones on an orange background with the word \"MAJOR\"",
    "phrases": "phone",
    "question": "how many phones are there?",
    "seed": 12,
    "index": 5
  },
  {
    "file": "bear-and-snail.jpg",
    "about": "three snails and a bear on an orange background",
    "phrases": "bear, snail",
    "question": "where is the bear?",
    "seed": 12,
    "index": 6
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
    "file": "hamburger-and-hat.jpg",
    "about": "three hamburgers and a hat on a brown background",
    "phrases": "hamburger, hat",
    "question": "how many hamburgers are there?",
    "seed": 12,
    "index": 16
  },
  {
    "file": "lion-and-snake.jpg",
    "about": "three lions and a snake on a black background",
    "phrases": "lion, snake",
    "question": "how many lions are there?",
    "seed": 12,
    "index": 18
  }
];
