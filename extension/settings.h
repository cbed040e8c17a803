/*-------------------------------------------------------------------------
 *
 * settings.h
 *		The module's settings; their variables are declared in regpilot.h.
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_SETTINGS_H
#define REGPILOT_SETTINGS_H

/* Define the settings.  Called once, while the server preloads the module. */
extern void settings_init(void);

#endif /* REGPILOT_SETTINGS_H */
