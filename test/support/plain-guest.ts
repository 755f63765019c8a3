/** A module guest that does nothing, and cannot be saved. */
export default function plain(): void {}
