// Lets xterm.js keep to the Content Security Policy of the page. The policy allows no inline style, and xterm.js writes
// style elements and style attributes. Its option documentOverride is not enough: version 6 does not use it for the rows
// and the scroll bar. So style elements become style sheets, and style attributes become styles that scripts may set.

let isApplied = false;

/** From now on, scripts of this page may write style elements and style attributes. */
export function allowStyles(): void {
  if (isApplied) return;
  isApplied = true;
  const { createElement } = Document.prototype;
  Document.prototype.createElement = function (this: Document, name: string, options?: ElementCreationOptions): HTMLElement {
    return name.toLowerCase() === 'style' ? styleSheet() : createElement.call(this, name, options);
  };
  const { setAttribute } = Element.prototype;
  Element.prototype.setAttribute = function (name, value) {
    if (name === 'style' && this instanceof HTMLElement) this.style.cssText = value;
    else setAttribute.call(this, name, value);
  };
}

/** An element whose text is a style sheet of the document until it is removed. */
function styleSheet(): HTMLElement {
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets.push(sheet);
  const element = document.createElement('template');
  let text = '';
  Object.defineProperty(element, 'textContent', {
    get: () => text,
    set: (value: string) => {
      text = value;
      sheet.replaceSync(value);
    },
  });
  element.remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((other) => other !== sheet);
    Element.prototype.remove.call(element);
  };
  return element;
}
