/** What a command of another tool's kind prints and ends with. */
export interface Printed {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

export function printed(stdout: string): Printed {
  return { status: 0, stdout, stderr: '' };
}

export function refused(status: number, stderr: string, stdout = ''): Printed {
  return { status, stdout, stderr };
}

/** strerror of the errnos that network devices answer with. */
const TEXTS: Readonly<Record<string, string>> = {
  EPERM: 'Operation not permitted',
  ENOENT: 'No such file or directory',
  EIO: 'Input/output error',
  ENOMEM: 'Cannot allocate memory',
  EACCES: 'Permission denied',
  EBUSY: 'Device or resource busy',
  EEXIST: 'File exists',
  ENODEV: 'No such device',
  EINVAL: 'Invalid argument',
  ENFILE: 'Too many open files in system',
  ENOSPC: 'No space left on device',
  ERANGE: 'Numerical result out of range',
  ELOOP: 'Too many levels of symbolic links',
  EOPNOTSUPP: 'Operation not supported',
  EADDRNOTAVAIL: 'Cannot assign requested address',
  ENETDOWN: 'Network is down',
};

/** The kernel's text for an errno name. */
export function errnoText(code: string): string {
  return TEXTS[code] ?? code;
}
