window.MathJax = {
  tex: { inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]] },
  options: { ignoreHtmlClass: ".*|", processHtmlClass: "arithmatex" },
};

// Material replaces the page without loading it anew.
document$.subscribe(() => {
  MathJax.startup?.output?.clearCache();
  MathJax.typesetPromise?.();
});
