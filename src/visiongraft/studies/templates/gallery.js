const root = document.documentElement;
const themeButton = document.getElementById("theme");
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
const nameTheme = () => { themeButton.textContent = isDark() ? "Light page" : "Dark page"; };
themeButton.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
systemDark.addEventListener("change", nameTheme);
nameTheme();
themeButton.hidden = false;

const dialog = document.querySelector("dialog");
const stage = dialog.querySelector(".stage");
const enlarged = stage.querySelector("img");
const sizeButton = dialog.querySelector("[data-do=size]");
const pictures = [...document.querySelectorAll(".zoom img")];
let shown = 0;

function setActual(actual) {
  stage.classList.toggle("actual", actual);
  sizeButton.textContent = actual ? "Fit" : "Full size";
}
function show(index) {
  shown = (index + pictures.length) % pictures.length;
  enlarged.src = pictures[shown].src;
  enlarged.alt = pictures[shown].alt;
  dialog.querySelector(".tools p").textContent = pictures[shown].dataset.title;
  setActual(false);
}
const actions = {
  previous: () => show(shown - 1),
  next: () => show(shown + 1),
  size: () => setActual(!stage.classList.contains("actual")),
  close: () => dialog.close(),
};
pictures.forEach((picture, index) => picture.parentElement.addEventListener("click", () => {
  show(index);
  dialog.showModal();
}));
dialog.querySelectorAll("[data-do]").forEach((button) => button.addEventListener("click", actions[button.dataset.do]));
dialog.querySelectorAll("[data-do=previous], [data-do=next]").forEach((button) => { button.hidden = pictures.length < 2; });
dialog.addEventListener("keydown", (event) => {
  if (stage.classList.contains("actual")) return;  // the arrows scroll
  if (event.key === "ArrowLeft") actions.previous();
  if (event.key === "ArrowRight") actions.next();
});
enlarged.addEventListener("click", actions.size);
stage.addEventListener("click", (event) => { if (event.target === stage) dialog.close(); });

async function copy(button) {
  const code = button.previousElementSibling;
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {  // a page opened from a file may not use the clipboard
    getSelection().selectAllChildren(code);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}
document.querySelectorAll(".command button").forEach((button) => button.addEventListener("click", () => copy(button)));
