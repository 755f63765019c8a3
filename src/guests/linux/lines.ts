/** Of a line that does not end, this much is kept. */
const REST_MAX = 1024;

/** Lines of a text that comes in pieces. */
export class Lines {
  /** What came since the last end of a line. */
  private rest = '';

  /** @returns the lines that end in this piece, without the end of the last one; '' when none does */
  add(piece: string): string {
    const end = piece.lastIndexOf('\n');
    const lines = end < 0 ? '' : this.rest + piece.slice(0, end);
    this.rest = ((end < 0 ? this.rest : '') + piece.slice(end + 1)).slice(-REST_MAX);
    return lines;
  }
}
